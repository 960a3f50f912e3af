-- Puts a desired state in the place of the one that was read, or refuses to: compare-and-set.
-- KEYS  darkroom:{FLEET}:desired  darkroom:{FLEET}:audit
-- ARGV  the document, the generation that it replaces ("" where there is none), the command, by whom
-- Returns {"written", its generation}, or {"refused", why}: then nothing has changed.
-- By hand: redis-cli --eval write.lua KEY KEY , DOCUMENT GENERATION COMMAND BY

local KEPT = 10000 -- entries of the audit stream, about

local function decoded(text)
  local fine, value = pcall(cjson.decode, text)
  return fine and type(value) == 'table' and value or {}
end

local function whole(number)
  return type(number) == 'number' and number >= 1 and number % 1 == 0 and number or nil
end

local function shown(number)
  return number and string.format('%.0f', number) or 'none'
end

local function names(epochs, epoch)
  for _, each in ipairs(type(epochs) == 'table' and epochs or {}) do
    if each == epoch then return true end
  end
  return false
end

local fleet = KEYS[1]:match('^darkroom:{(.+)}:desired$')
if not fleet or KEYS[2] ~= 'darkroom:{' .. fleet .. '}:audit' then
  return redis.error_reply('ERR the keys must be darkroom:{FLEET}:desired and darkroom:{FLEET}:audit')
end
local new = decoded(ARGV[1])
local generation = whole(new.generation)
if new.schema ~= 'darkroom.desired.v1' or new.fleet ~= fleet or type(new.epoch) ~= 'string' or not generation then
  return redis.error_reply('ERR the document must be JSON of schema darkroom.desired.v1 and of fleet ' .. fleet
    .. ', with an epoch and a generation')
end
local expected = whole(tonumber(ARGV[2]))
if not expected and ARGV[2] ~= '' then
  return redis.error_reply('ERR the generation to be replaced must be a number, or "" where there is none')
end

-- A value without a generation (no JSON, or no state) counts as none: so it can be replaced.
local stored = decoded(redis.call('GET', KEYS[1]) or '')
local before = whole(stored.generation)
if before ~= expected then
  return {'refused', 'the stored generation is ' .. shown(before) .. ', not ' .. shown(expected) .. ': read it again'}
end
if before and generation <= before then
  return {'refused', 'the new generation is ' .. shown(generation) .. ': it must be above ' .. shown(before)}
end
if type(stored.epoch) == 'string' and stored.epoch ~= new.epoch and not names(new.supersedes, stored.epoch) then
  return {'refused', 'the stored epoch is ' .. stored.epoch .. ', which the document does not supersede'}
end

-- The state comes last: where one of these is not permitted, or memory is short, it stays as it was.
local time = redis.call('TIME')
local at_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local nudge = '{"epoch":' .. cjson.encode(new.epoch) .. ',"generation":' .. shown(generation) .. '}'
redis.call('PUBLISH', 'darkroom:{' .. fleet .. '}:nudge', nudge)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', KEPT, '*', 'document', ARGV[1], 'by', ARGV[4], 'command', ARGV[3],
  'epoch', new.epoch, 'generation', shown(generation), 'at_ms', at_ms)
redis.call('SET', KEYS[1], ARGV[1])
return {'written', shown(generation)}
