-- Begin anew. KEYS: the rate.
return redis.call('DEL', KEYS[1])
