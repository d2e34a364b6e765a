-- Return the name of the cluster that uses this Redis. KEYS: the name. ARGV: a name, for the first node.
return redis.call('SET', KEYS[1], ARGV[1], 'NX') and ARGV[1] or redis.call('GET', KEYS[1])
