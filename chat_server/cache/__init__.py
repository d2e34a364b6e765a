"""What lives for a while: sessions, message counters, rate limits. Not a cache that may forget:

a lost session logs a user out, a lost counter must be rebuilt from the messages.
"""
