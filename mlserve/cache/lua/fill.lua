-- Puts records of one entity into its hash: with the lease that was taken before the source was read, or, for whoever
-- needs none (a writer after its commit, a prediction), unless the hash holds a newer state.
--
-- Why a lease: a reader may read the source, be held up, and come back after the value has changed and the change was
-- invalidated. Every invalidation deletes the lease, so such a late fill is refused.
-- Why versions as well: they keep records of one key in order whatever comes late. They are 8 bytes, compared as two
-- halves, because Lua's numbers are doubles and lose integers above 2^53.
--
-- KEYS[1]  the entity's hash
-- KEYS[2]  the entity's lease
-- ARGV[1]  token of the lease, or '' for a put without one
-- ARGV[2]  '1': put into fields that exist only (a copy that need not be there)
--          '2': what is there may be of another epoch, which the lease's holder saw: a history of the source that was
--          lost may have had larger versions than the source has now, and would keep every fill out
-- ARGV     then triples of: field (feature group), record, milliseconds to keep it at most
-- returns  the number of records that were refused for a newer one; -1 if the lease is not the caller's any more
local function newer(held, record)
  local high, low = struct.unpack('>I4I4', held)
  local record_high, record_low = struct.unpack('>I4I4', record)
  return high > record_high or (high == record_high and low > record_low)
end

if ARGV[1] ~= '' then
  if redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end
end
redis.call('DEL', KEYS[2])
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  -- Somebody else's value under our name: left there, it would be a miss for ever.
  redis.call('UNLINK', KEYS[1])
end
local refused, longest = 0, 0
for i = 3, #ARGV, 3 do
  local field, record, keep_ms = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local held = redis.call('HGET', KEYS[1], field)
  -- Bytes that are no record of ours protect nothing and are replaced.
  local kind = held and string.sub(held, 9, 9)
  local valid = held and ARGV[2] ~= '2' and string.len(held) >= 17 and (kind == 'V' or kind == 'N' or kind == 'T')
  if valid and newer(held, record) then
    refused = refused + 1
  elseif held or ARGV[2] ~= '1' then
    redis.call('HSET', KEYS[1], field, record)
    if keep_ms > longest then longest = keep_ms end
  end
end
-- One life for the hash, its longest record's: a life for each field would cost it the compact encoding, 200 bytes an
-- entity. It is an upper limit only; whether a record may be served is decided when it is read.
if longest > 0 and redis.call('PTTL', KEYS[1]) < longest then
  redis.call('PEXPIRE', KEYS[1], longest)
end
return refused
