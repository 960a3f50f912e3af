-- A worker's answer, which is its heartbeat too: it is a member until the answer's time is over.
-- KEYS  darkroom:{FLEET}:members  darkroom:{FLEET}:worker:ID
-- ARGV  the worker's id, the answer, how long it holds (ms)

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], now_ms + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
return redis.status_reply('OK')
