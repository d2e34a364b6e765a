-- Two users talk freely. KEYS: the pair's state. ARGV: until (microseconds), lifetime of the state (ms).
redis.call('HSET', KEYS[1], 'sender', '', 'count', 0, 'started', 0, 'refused', 0, 'until', ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(1000, ARGV[2]))
return 1
