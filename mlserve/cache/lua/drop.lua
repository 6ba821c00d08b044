-- Invalidates fields of an entity: a tombstone with the version of what was there, and the lease is gone.
--
-- Why a tombstone and no deletion: its version keeps out an older value that comes late, and the reader can be told why
-- it misses. Why the lease: whoever took it may have read the source before the change, and must not fill.
--
-- KEYS[1]  the entity's hash
-- KEYS[2]  the entity's lease
-- ARGV     fields (feature groups)
-- returns  the number of records that were there
redis.call('DEL', KEYS[2])
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('UNLINK', KEYS[1])
  return 0
end
local time = redis.call('TIME')
local written_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local moment = struct.pack('>I4I4', math.floor(written_us / 4294967296), written_us % 4294967296)
local dropped = 0
for i = 1, #ARGV do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held then
    local kind = string.sub(held, 9, 9)
    if string.len(held) >= 17 and (kind == 'V' or kind == 'N' or kind == 'T') then
      redis.call('HSET', KEYS[1], ARGV[i], string.sub(held, 1, 8) .. 'T' .. moment)
    else
      redis.call('HDEL', KEYS[1], ARGV[i])
    end
    dropped = dropped + 1
  end
end
return dropped
