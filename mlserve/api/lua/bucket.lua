-- One key's bucket of units, and what each process holds of it. In one step, so that processes cannot both take the
-- last unit; by Redis' own clock, so that no process' clock can make units.
--
-- What lies in the bucket and what processes hold are together never more than the burst. A process spends without
-- asking what it holds, so a bucket that filled up beside it would let through a burst and what is held. Therefore in
-- any span of time no more is spent than the burst and what flows in during it, whoever spends it.
--
-- KEYS[1]  a hash: `left` (units, a fraction may be among them), `at` (microseconds), and a field for each holder
-- ARGV     holder, units it still holds, units it gives back, units it needs now, units it would like ahead,
--          units that flow in per second, burst, milliseconds for which what it holds is reserved
-- returns  1 if the needed units are the caller's, else 0; units ahead; whole units left; milliseconds until what was
--          needed is there; number of holders, the caller included
local holder = 'h' .. ARGV[1]
local held, back, need, ahead = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local rate, burst, keep_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

if redis.call('HLEN', KEYS[1]) > 4096 then
  -- More fields than there are processes anywhere: not ours, and too many to look at in one step.
  redis.call('UNLINK', KEYS[1])
end

local left, at, elsewhere, holders = burst, now, 0, 1
local gone = {}
local fields = redis.call('HGETALL', KEYS[1])
for place = 1, #fields, 2 do
  local name, value = fields[place], fields[place + 1]
  if name == 'left' then
    left = tonumber(value) or burst
  elseif name == 'at' then
    at = tonumber(value) or now
  elseif name ~= holder then
    local units, until_us = string.match(value, '^(%d+):(%d+)$')
    if units and tonumber(until_us) > now then
      elsewhere, holders = elsewhere + units, holders + 1
    else
      gone[#gone + 1] = name  -- its process is dead or cut off; that one knows that its units are void by now
    end
  end
end
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
end

-- A clock that was set back lets nothing flow in; one that was set forward cannot fill it over the brim.
local inflow = math.max(0, now - at) * rate / 1000000
left = math.max(0, math.min(left + back + inflow, burst - elsewhere - held))

local granted, wait_ms = 0, 0
if need <= left then
  granted, left = 1, left - need
  -- Half of what is there at most: the last ones stay for whoever asks, in whatever process.
  ahead = math.min(ahead, math.floor(left / 2))
  left, held = left - ahead, held + ahead
else
  ahead, wait_ms = 0, math.ceil((need - left) * 1000 / rate)
end
redis.call('HSET', KEYS[1], 'left', string.format('%.17g', left), 'at', string.format('%d', now),
  holder, string.format('%d:%d', held, now + keep_ms * 1000))
-- A bucket that nobody asks for until it would be full need not be kept.
redis.call('PEXPIRE', KEYS[1], math.ceil(burst * 1000 / rate) + keep_ms)
return {granted, ahead, math.floor(left), wait_ms, holders}
