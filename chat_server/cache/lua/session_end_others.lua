-- End all sessions of a user except one. KEYS: the user's index. ARGV: key prefix of sessions, digest to keep.
-- Returns how many ended.
local ended = 0
for _, digest in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if digest ~= ARGV[2] then
        ended = ended + redis.call('DEL', ARGV[1] .. digest)
        redis.call('ZREM', KEYS[1], digest)
    end
end
return ended
