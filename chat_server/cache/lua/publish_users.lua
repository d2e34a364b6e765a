-- Publish the users with sockets at a node to the channel of the node that asks. So they arrive after all that was
-- published there before, and before the rest. KEYS: the directory of the node. ARGV: the channel, a header, a payload.
local names = table.concat(redis.call('HKEYS', KEYS[1]), '\n')
redis.call('PUBLISH', ARGV[1], ARGV[2] .. struct.pack('>I4I4', #ARGV[3], #names) .. ARGV[3] .. names)
return 1
