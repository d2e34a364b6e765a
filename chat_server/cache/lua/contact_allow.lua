-- Let two users write freely. KEYS: the state of the pair. ARGV: until (microseconds), lifetime of the state (ms).
redis.call('HSET', KEYS[1], 'sender', '', 'count', 0, 'started', 0, 'refused', 0, 'until', ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(1000, ARGV[2]))
return 1
