-- Return the users with sockets at a node. KEYS: the directory of the node.
return redis.call('HKEYS', KEYS[1])
