-- Delete a rate or the state of a pair. KEYS: the key.
return redis.call('DEL', KEYS[1])
