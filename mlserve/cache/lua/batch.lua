-- Takes one partition from one snapshot of the source to the next: tombstones for what changed in between, and then the
-- watermark that says so. All of it or nothing, because a watermark ahead of its invalidations vouches for old copies.
--
-- Why the chain: after a failover this node may hold an older history, in which earlier batches never happened. What is
-- applied here must continue what this history holds, so the watermark has to be the one that the caller built on;
-- otherwise the caller gets it, and asks the source again for what follows it.
-- Why the lease goes even where the record is newer: its holder may have read the source before this change.
-- Why versions are compared as two halves: Lua's numbers are doubles and lose integers above 2^53.
--
-- Why the message: processes that keep copies of their own follow it (`bus.py`). It is written here, so that no failover
-- can keep it and lose what it tells, or the other way round. One that cannot be written is a gap, which they notice.
--
-- KEYS[1]  the partition's watermark
-- KEYS[2]  the partition's stream of messages
-- KEYS     then pairs of: an entity's hash, its lease
-- ARGV[1]  the watermark that the caller built on: all of it; '' if there was none that could be read
-- ARGV[2]  the watermark to set
-- ARGV[3]  longest watermark in bytes that counts as one
-- ARGV[4]  milliseconds that a tombstone stays at least
-- ARGV[5]  what changed, for the message
-- ARGV[6]  about how many messages are kept
-- ARGV     then for each entity: '1' to leave alone what it does not hold (a copy that need not be there), else '0';
--          the number of its fields; pairs of field (feature group) and version, 8 bytes
-- returns  {1, tombstones written}; {0, watermark or ''} if the chain does not fit
local function watermark()
  local length = redis.pcall('STRLEN', KEYS[1])
  -- A value of another type, or one too large to be ours: readable to nobody.
  if type(length) ~= 'number' or length > tonumber(ARGV[3]) then return '' end
  return redis.call('GET', KEYS[1]) or ''
end

local held = watermark()
if held ~= ARGV[1] then return {0, held} end

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local moment = struct.pack('>I4I4', math.floor(now_us / 4294967296), now_us % 4294967296)

local function older(record, version)
  local high, low = struct.unpack('>I4I4', record)
  local than_high, than_low = struct.unpack('>I4I4', version)
  return high < than_high or (high == than_high and low < than_low)
end

local written, place = 0, 7
for entity = 3, #KEYS, 2 do
  local hash, lease = KEYS[entity], KEYS[entity + 1]
  local only_held, fields = ARGV[place] == '1', tonumber(ARGV[place + 1])
  place = place + 2
  redis.call('DEL', lease)
  local holds = redis.call('TYPE', hash).ok
  if holds ~= 'hash' and holds ~= 'none' then
    -- Somebody else's value under our name.
    redis.call('UNLINK', hash)
  end
  local changed = false
  for _ = 1, fields do
    local field, version = ARGV[place], ARGV[place + 1]
    place = place + 2
    local record = redis.call('HGET', hash, field)
    local kind = record and string.sub(record, 9, 9)
    local valid = record and string.len(record) >= 17 and (kind == 'V' or kind == 'N' or kind == 'T')
    if (not record and not only_held) or (record and not valid) or (valid and older(record, version)) then
      redis.call('HSET', hash, field, version .. 'T' .. moment)
      written, changed = written + 1, true
    end
  end
  if changed and redis.call('PTTL', hash) < tonumber(ARGV[4]) then redis.call('PEXPIRE', hash, ARGV[4]) end
end
redis.call('SET', KEYS[1], ARGV[2])
local function tell()
  return redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'held', held, 'following', ARGV[2], 'changed', ARGV[5])
end
if type(tell()) == 'table' then
  -- Somebody else's value under our name, or a stream whose last number cannot be exceeded.
  redis.call('UNLINK', KEYS[2])
  tell()
end
return {1, written}
