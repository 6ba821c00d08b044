-- Puts records of one entity into its hash, unless the hash holds a newer state of the same group.
--
-- Why a script: between a reader's look at the version and its write another writer may have stored a newer value;
-- only inside Redis are look and write one step. Versions are 19 digits compared as text, because Lua's numbers are
-- doubles and lose integers above 2^53.
--
-- KEYS[1]  the entity's hash
-- ARGV     triples of: field (feature group), record, milliseconds to keep it at most
-- returns  the number of records that were refused
local refused = 0
for i = 1, #ARGV, 3 do
  local field, record, keep_ms = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local held = redis.pcall('HGET', KEYS[1], field)
  if type(held) == 'table' then
    -- Not a hash: somebody else's value under our name. Left there, it would be a miss for ever.
    redis.call('UNLINK', KEYS[1])
    held = false
  end
  local held_version = held and string.sub(held, 1, 19)
  -- Bytes that are no record of ours (no 19 digits in front) protect nothing and are replaced.
  if held_version and string.find(held_version, '^%d+$') and held_version > string.sub(record, 1, 19) then
    refused = refused + 1
  else
    redis.call('HSET', KEYS[1], field, record)
    redis.call('HPEXPIRE', KEYS[1], keep_ms, 'FIELDS', 1, field)
  end
end
return refused
