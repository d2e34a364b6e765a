-- Publish a message to one channel. KEYS: none. ARGV: the channel, the message.
return redis.call('PUBLISH', ARGV[1], ARGV[2])
