-- Take a lock if it is free. KEYS: the lock. ARGV: a random token, lifetime (ms). Returns whether it was free (0 or 1).
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
