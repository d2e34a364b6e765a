-- End a user's sessions but one; returns how many. KEYS: the user's index. ARGV: the prefix of sessions, the digest to
-- keep.
local ended = 0
for _, digest in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if digest ~= ARGV[2] then
        ended = ended + redis.call('DEL', ARGV[1] .. digest)
        redis.call('ZREM', KEYS[1], digest)
    end
end
return ended
