"""What lives for a while: sessions, message counters, rate limits. Not a cache that may forget:

a session that is lost logs somebody out, a counter that is lost must be rebuilt from the messages.
"""
