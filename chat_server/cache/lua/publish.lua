-- Publish items to the nodes that have sockets of their users, as one message per node. KEYS: the nodes.
-- ARGV: this node, key prefix of the directory, prefix of the channels, a header, whether every node gets it (0 or 1),
-- the items in MessagePack, each as its users (nil: for every node), the size of its payload, and its other users, and
-- all payloads.
-- Returns a byte for each item: how many other nodes with sockets of its users accepted it; its other users do not count.
-- It writes nothing, so that no replica publishes again. The arguments and the result are packed because each further
-- one costs the client more than the script itself.
local USERS, SIZE, OTHERS = 1, 2, 3
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local users, known = {}, {}
local function look_up(names)
    for _, user in ipairs(names) do
        if not known[user] then
            known[user] = true
            table.insert(users, user)
        end
    end
end
local items, accepted, for_all = cmsgpack.unpack(ARGV[6]), {}, false
for number, item in ipairs(items) do
    accepted[number] = 0
    for_all = for_all or not item[USERS]
    look_up(item[USERS] or {})
    look_up(item[OTHERS])
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if node ~= ARGV[1] then
        local here, records, counted, place = {}, {ARGV[4]}, {}, 0
        local found = for_all
        for start = 1, #users, 1000 do -- unpack has a limit
            local some = {unpack(users, start, math.min(start + 999, #users))}
            for index, sockets in ipairs(redis.call('HMGET', ARGV[2] .. node, unpack(some))) do
                here[some[index]] = sockets
                found = found or sockets
            end
        end
        for number, item in ipairs(found and items or {}) do
            local names = {}
            for _, user in ipairs(item[USERS] or {}) do
                if here[user] then
                    table.insert(names, user)
                end
            end
            if #names > 0 or not item[USERS] then
                table.insert(counted, number)
            end
            for _, user in ipairs(item[OTHERS]) do
                if here[user] then
                    table.insert(names, user)
                end
            end
            if #names > 0 or not item[USERS] then
                local joined = table.concat(names, '\n')
                local payload = string.sub(ARGV[7], place + 1, place + item[SIZE])
                table.insert(records, struct.pack('>I4I4', #payload, #joined) .. payload .. joined)
            end
            place = place + item[SIZE]
        end
        if #records > 1 or ARGV[5] == '1' then
            if redis.call('PUBLISH', ARGV[3] .. node, table.concat(records)) > 0 then
                for _, number in ipairs(counted) do
                    accepted[number] = accepted[number] + 1
                end
            end
        end
    end
end
for number, count in ipairs(accepted) do
    accepted[number] = string.char(count)
end
return table.concat(accepted)
