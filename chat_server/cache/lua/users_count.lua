-- Count the users with sockets at this node and at other nodes that listen. KEYS: the nodes. ARGV: this node, key prefix
-- of the directory, prefix of the channels. It takes as long as there are users: for broadcasts, which take longer.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seen, count = {}, 0
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node == ARGV[1] or redis.call('PUBSUB', 'NUMSUB', ARGV[3] .. node)[2] > 0 then
        for _, user in ipairs(redis.call('HKEYS', ARGV[2] .. node)) do
            if not seen[user] then
                seen[user] = true
                count = count + 1
            end
        end
    end
end
return count
