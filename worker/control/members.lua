-- Who is alive, by Redis's clock, and what they answered last.
-- KEYS  darkroom:{FLEET}:members
-- Returns the time (ms), then the id and the answer of each.
-- By hand: redis-cli --eval members.lua KEY

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = KEYS[1]:gsub('members$', 'worker:')
local found = {string.format('%.0f', now_ms)}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now_ms), '+inf')) do
  local answer = redis.call('GET', answers .. worker)
  if answer then
    found[#found + 1] = worker
    found[#found + 1] = answer
  end
end
return found
