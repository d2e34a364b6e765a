-- Publish a change to every other node. KEYS: the nodes. ARGV: this node, prefix of the channels, the message, then the
-- nodes that have confirmed it. Returns the nodes that must still do so: with a lease, whether or not they listen.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local done, waiting = {[ARGV[1]] = true}, {}
for place = 4, #ARGV do
    done[ARGV[place]] = true
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if not done[node] then
        redis.call('PUBLISH', ARGV[2] .. node, ARGV[3])
        table.insert(waiting, node)
    end
end
return waiting
