-- Find users at other nodes that listen. KEYS: the nodes. ARGV: this node, key prefix of the directory, prefix of the
-- channels, then the users. Returns for each user a list of "sockets,sync sockets", one for each node.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for place = 4, #ARGV do
    found[place - 3] = {}
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node ~= ARGV[1] and redis.call('PUBSUB', 'NUMSUB', ARGV[3] .. node)[2] > 0 then
        for index, sockets in ipairs(redis.call('HMGET', ARGV[2] .. node, unpack(ARGV, 4))) do
            if sockets then
                table.insert(found[index], sockets)
            end
        end
    end
end
return found
