-- Know nothing of it any more. KEYS: a rate, or a pair's state.
return redis.call('DEL', KEYS[1])
