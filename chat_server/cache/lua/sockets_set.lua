-- Enter users into the directory of a node, unless they would have too many sockets. KEYS: the nodes, the directory of
-- this node. ARGV: this node, key prefix of the directory, prefix of the channels, lifetime (ms), then for each user:
-- name, number of sockets at this node, limit of all sockets (0: none). Returns for each whether it was entered (0 or 1).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes = {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node ~= ARGV[1] and redis.call('PUBSUB', 'NUMSUB', ARGV[3] .. node)[2] > 0 then
        table.insert(nodes, node)
    end
end
local entered = {}
for place = 5, #ARGV, 3 do
    local user, count, limit = ARGV[place], tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2])
    local sum = count
    if limit > 0 then
        for _, node in ipairs(nodes) do
            sum = sum + tonumber(redis.call('HGET', ARGV[2] .. node, user) or 0)
        end
    end
    if count == 0 then
        redis.call('HDEL', KEYS[2], user)
    elseif limit == 0 or sum <= limit then
        redis.call('HSET', KEYS[2], user, count)
    end
    table.insert(entered, (limit == 0 or sum <= limit) and 1 or 0)
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return entered
