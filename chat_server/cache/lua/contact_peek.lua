-- Return the state of a pair as it is stored, and its expiry (ms); false if there is none. KEYS: the state.
local state = redis.call('HMGET', KEYS[1], 'sender', 'count', 'started', 'refused', 'until')
local now = redis.call('TIME')
state[6] = now[1] * 1000 + math.floor(now[2] / 1000) + redis.call('PTTL', KEYS[1])
return state[1] and state
