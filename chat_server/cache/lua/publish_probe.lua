-- Publish a message to the channel of this node. KEYS: none. ARGV: the channel, the message.
return redis.call('PUBLISH', ARGV[1], ARGV[2])
