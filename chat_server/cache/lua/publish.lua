-- Publish items to the nodes that have sockets of their users, as one message per node. KEYS: the nodes.
-- ARGV: this node, key prefix of the directory, prefix of the channels, a header, whether every node gets it (0 or 1);
-- then for each item its payload, the number of its users, and these users; number -1: for every node.
-- Returns for each item how many other nodes accepted it. It writes nothing, so that no replica publishes again.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes, records, contained = {}, {}, {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node ~= ARGV[1] then
        table.insert(nodes, node)
        records[node], contained[node] = {ARGV[4]}, {}
    end
end
local accepted, place = {}, 6
while place <= #ARGV do
    local payload, number = ARGV[place], tonumber(ARGV[place + 1])
    local users = {unpack(ARGV, place + 2, place + 1 + math.max(number, 0))}
    table.insert(accepted, 0)
    for _, node in ipairs(nodes) do
        local here = nil
        if number > 0 then
            here = {}
            for index, sockets in ipairs(redis.call('HMGET', ARGV[2] .. node, unpack(users))) do
                if sockets then
                    table.insert(here, users[index])
                end
            end
        end
        if number == -1 or (here and #here > 0) then
            local names = table.concat(here or {}, '\n')
            table.insert(records[node], struct.pack('>I4I4', #payload, #names) .. payload .. names)
            table.insert(contained[node], #accepted)
        end
    end
    place = place + 2 + math.max(number, 0)
end
for _, node in ipairs(nodes) do
    if #contained[node] > 0 or ARGV[5] == '1' then
        if redis.call('PUBLISH', ARGV[3] .. node, table.concat(records[node])) > 0 then
            for _, item in ipairs(contained[node]) do
                accepted[item] = accepted[item] + 1
            end
        end
    end
end
return accepted
