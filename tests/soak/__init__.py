"""The long walk: many clients on a server that is killed, stopped, frozen and cut off, and a checker at the end.

make soak MINUTES=30 STORES=embedded SEED=7

The checker knows only what the clients saw. What is done, by whom and when, is drawn from the seed.
"""
