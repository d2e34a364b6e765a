-- Return a session as it is stored: user and expiry (ms); false if there is none. KEYS: the session.
local session = redis.call('HMGET', KEYS[1], 'user', 'expires')
return session[1] and session
