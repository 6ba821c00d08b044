-- Gives a lease back that was not needed after all, unless it is somebody else's by now.
--
-- KEYS[1]  the entity's lease
-- ARGV[1]  token of the caller
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
