-- Grants the right to load an entity from the source and to fill what was read, to one caller at a time.
--
-- Why a script: between a reader's look at the records and its request for the lease another one may have loaded, filled
-- and let go. Then the records are not those that the reader saw, and instead of a second load it gets them. The look
-- and the grant must be one step.
--
-- KEYS[1]  the entity's hash
-- KEYS[2]  the entity's lease
-- KEYS[3]  the partition's watermark: it goes with every answer, since what it says is true of this moment
-- ARGV[1]  token of the caller, ARGV[2] milliseconds after which the lease of a caller that died is void
-- ARGV     then pairs of: field, what the caller saw there: the first 17 bytes of a record, '' for nothing,
--          'T' for a tombstone, '*' for whatever there is, '!' for bytes that were no record: they may look like one
--          that is newer than anything, and would keep every fill out, so whoever may load removes them
-- returns  {1, watermark or false} granted; {0} somebody else loads;
--          {2, watermark or false, record or false, ...} the records have changed, here they are
local function watermark()
  local held = redis.pcall('GET', KEYS[3])
  return type(held) == 'string' and held or false
end

local changed = false
local fields = {}
for i = 3, #ARGV, 2 do
  local seen = ARGV[i + 1]
  fields[#fields + 1] = ARGV[i]
  if seen ~= '*' and seen ~= '!' then
    local held = redis.pcall('HGET', KEYS[1], ARGV[i])
    if type(held) == 'table' then held = false end
    local now = held and string.sub(held, 1, 17) or ''
    if seen == 'T' then
      if held and string.sub(held, 9, 9) ~= 'T' then changed = true end
    elseif now ~= seen and not (seen == '' and string.sub(now, 9, 9) == 'T') then
      changed = true
    end
  end
end
if changed then
  local records = redis.pcall('HMGET', KEYS[1], unpack(fields))
  if not records.err then
    table.insert(records, 1, watermark())
    table.insert(records, 1, 2)
    return records
  end
end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  for i = 3, #ARGV, 2 do
    if ARGV[i + 1] == '!' then redis.pcall('HDEL', KEYS[1], ARGV[i]) end
  end
  return {1, watermark()}
end
return {0}
