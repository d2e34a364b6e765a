"""The soak test: many clients, a server that is killed, stopped, frozen and disconnected, and a checker at the end.

make soak MINUTES=30 STORES=embedded SEED=7

The checker knows only what the clients observed. The seed determines all actions, their order and their pauses.
"""
