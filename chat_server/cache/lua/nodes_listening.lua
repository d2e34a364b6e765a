-- Return the other nodes that listen. KEYS: the nodes. ARGV: this node, prefix of the channels.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local listening = {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node ~= ARGV[1] and redis.call('PUBSUB', 'NUMSUB', ARGV[2] .. node)[2] > 0 then
        table.insert(listening, node)
    end
end
return listening
