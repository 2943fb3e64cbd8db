"""What runs inside the Redis server, each script atomically.

The keys of a family are in one slot of a cluster, and those of the catalogue in another:

    {prefix:family}:refs     hash   birth -> ref; the birth is the version with which it was made
    {prefix:family}:nodes    hash   key -> node
    {prefix:family}:labels   hash   label -> keys of nodes, one after the other
    {prefix:family}:meta     hash   `token`, new after each change of the family, and `bytes`
    {prefix}:catalogue       hash   id -> entry: family, birth, version, metadata terms
    {prefix}:id, :created, :updated      sorted sets of ids
    {prefix}:terms           sorted set of terms, each with an id behind it
    {prefix}:format          the version of all this

An id is what its catalogue entry points to. If that is not there, the id is free.

Keys are eight bytes and stay so: a number in Lua is a double. Scripts read all of their keys before
they write, so that one of a wrong type ends them while nothing has changed.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = [
    "BONES",
    "CATALOGUE",
    "ENTER",
    "FAMILY",
    "FORMAT",
    "PUT",
    "PUT_AND_ENTER",
    "REMOVE",
    "REMOVE_AND_ENTER",
    "REPLACE",
    "STATE",
    "WALK",
    "Script",
]


class Script:
    """A script, and the hash by which a server knows it.

    Args:
        source: In Lua.
    """

    def __init__(self, *source: str) -> None:
        self.source: Final = "\n".join(source)
        self.sha: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


FAMILY: Final = ("refs", "nodes", "labels", "meta")
CATALOGUE: Final = ("catalogue", "id", "created", "updated", "terms", "format")
FORMAT: Final = 1

_COUNT: Final = """
local function count(meta, more)
  more = string.format('%.0f', more)
  if type(redis.pcall('HINCRBY', meta, 'bytes', more)) == 'table' then  -- there is no number
    redis.call('HSET', meta, 'bytes', math.max(0, more))
  end
end
"""

_LOOK_AT_FAMILY: Final = """
for i = 1, 4 do
  redis.call('HLEN', KEYS[i])
end
"""

_ENTER: Final = """
local function look_at_catalogue(k)
  redis.call('HLEN', KEYS[k])
  for i = k + 1, k + 4 do
    redis.call('ZCARD', KEYS[i])
  end
  redis.call('SETNX', KEYS[k + 5], '%d')  -- also in a server that forgot all when it was restarted
end

-- Sets, changes or removes the entry of an id. `wanted` is what the entry that is there must begin
-- with, or '-' for no entry. Returns false if that was done, and else the entry, '' for none.
local function enter(k, a)
  local id, wanted, head, terms = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 5]
  local catalogue, ids, created, updated, by_term = unpack(KEYS, k, k + 4)
  local entry = redis.call('HGET', catalogue, id) or ''
  if wanted == '-' and entry ~= '' or wanted ~= '-' and string.sub(entry, 1, #wanted) ~= wanted then
    return entry
  end
  for i = 25, #entry, 16 do
    redis.call('ZREM', by_term, string.sub(entry, i, i + 15) .. id)
  end
  if head == '' then
    redis.call('HDEL', catalogue, id)
    for _, key in ipairs({ids, created, updated}) do
      redis.call('ZREM', key, id)
    end
    return false
  end
  redis.call('HSET', catalogue, id, head .. terms)
  redis.call('ZADD', ids, 0, id)
  redis.call('ZADD', created, ARGV[a + 3], id)
  redis.call('ZADD', updated, ARGV[a + 4], id)
  for i = 1, #terms, 16 do
    redis.call('ZADD', by_term, 0, string.sub(terms, i, i + 15) .. id)
  end
  return false
end
""".replace("%d", str(FORMAT))

_PUT: Final = """
local refs, nodes, labels, meta = unpack(KEYS, 1, 4)
local birth, expected, record, built_on, bytes = unpack(ARGV, 1, 5)
local version, last = string.sub(record, 1, 8), 6 + 3 * ARGV[6]

local function stands()
  for i = 1, #built_on, 8 do
    if redis.call('HEXISTS', nodes, string.sub(built_on, i, i + 7)) == 0 then
      return false
    end
  end
  return true
end

local function write(old)
  local before = old and #old >= 12 and struct.unpack('>I4', old, 9) or 0
  local more = bytes + struct.unpack('>I4', record, 9) - before
  redis.call('HSET', meta, 'token', version)
  count(meta, more)
  for i = 7, last, 3 do
    redis.call('HSET', nodes, ARGV[i], ARGV[i + 1])
    if ARGV[i + 2] ~= '' then
      local keys = redis.call('HGET', labels, ARGV[i + 2]) or ''
      redis.call('HSET', labels, ARGV[i + 2], keys .. ARGV[i])
    end
  end
  redis.call('HSET', refs, birth, record)
end

local old = redis.call('HGET', refs, birth)
local current = old and string.sub(old, 1, 8) or ''
if current == version then
  return 1  -- this write came through before, and only its answer was lost
end
if current ~= expected or not stands() then
  return 0
end
"""

PUT: Final = Script(_COUNT, _LOOK_AT_FAMILY, _PUT, "write(old)\nreturn 1")
ENTER: Final = Script(_ENTER, "look_at_catalogue(1)\nreturn enter(1, 1)")
PUT_AND_ENTER: Final = Script(
    _COUNT,
    _LOOK_AT_FAMILY,
    _ENTER,
    _PUT,
    """
look_at_catalogue(5)
local entry = enter(5, last + 1)
if entry then
  return entry
end
write(old)
return 1
""",
)

_REMOVE: Final = """
local refs, nodes, labels, meta = unpack(KEYS, 1, 4)
local token, new, birth, bytes = unpack(ARGV, 1, 4)  -- bytes: how many more, so below zero
local last = 5 + 2 * ARGV[5]
if (redis.call('HGET', meta, 'token') or '') ~= token then
  return 0
end
redis.call('HDEL', refs, birth)
if redis.call('HLEN', refs) == 0 then
  redis.call('UNLINK', refs, nodes, labels, meta)
else
  redis.call('HSET', meta, 'token', new)
  count(meta, bytes)
  for i = 6, last, 2 do
    redis.call('HDEL', nodes, ARGV[i])
    if ARGV[i + 1] ~= '' then
      local keys, left = redis.call('HGET', labels, ARGV[i + 1]) or '', {}
      for at = 1, #keys, 8 do
        local key = string.sub(keys, at, at + 7)
        if key ~= ARGV[i] then
          left[#left + 1] = key
        end
      end
      if #left == 0 then
        redis.call('HDEL', labels, ARGV[i + 1])
      else
        redis.call('HSET', labels, ARGV[i + 1], table.concat(left))
      end
    end
  end
end
"""

REMOVE: Final = Script(_COUNT, _LOOK_AT_FAMILY, _REMOVE, "return 1")
REMOVE_AND_ENTER: Final = Script(
    _COUNT,
    _LOOK_AT_FAMILY,
    _ENTER,
    "look_at_catalogue(5)",
    _REMOVE,
    "enter(5, last + 1)\nreturn 1",
)

WALK: Final = Script("""
-- At most about 32 MB at once, for the sake of everybody else.
local key, floor, above, out, size = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), {}, 0
while #out < 20000 and size < 33554432 do
  local node = redis.call('HGET', KEYS[1], key)
  if not node then
    break
  end
  if #node < 20 then  -- damaged, which the client says
    out[#out + 1] = key
    out[#out + 1] = node
    break
  end
  local depth = struct.unpack('>i8', node, 9)
  if depth < floor or above and depth >= above then  -- else it might lead back to itself, for ever
    break
  end
  above = depth
  out[#out + 1] = key
  out[#out + 1] = node
  size = size + #node
  key = string.sub(node, 1, 8)
end
return out
""")

BONES: Final = Script("""
-- Some of a family's nodes without their payloads, and where to go on.
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 1000)
local found, out = page[2], {}
for i = 1, #found, 2 do
  local stop = #found[i + 1] - 1
  if stop >= 19 then  -- less is damaged, which the client says
    stop = math.min(20 + struct.unpack('>I4', found[i + 1], 17), stop)
  end
  out[#out + 1] = found[i]
  out[#out + 1] = string.sub(found[i + 1], 1, stop) .. '\\0'
  out[#out + 1] = #found[i + 1] - stop - 1
end
return {page[1], out}
""")

STATE: Final = Script("""
return {redis.call('HGET', KEYS[2], 'token') or '', redis.call('HGETALL', KEYS[1])}
""")

REPLACE: Final = Script(
    _COUNT,
    """
local nodes, meta, more, changed = KEYS[1], KEYS[2], 0, false
redis.call('HLEN', meta)
for i = 2, #ARGV, 2 do
  local node = redis.call('HGET', nodes, ARGV[i])
  if node and #node > 20 then
    local stop = 20 + struct.unpack('>I4', node, 17)
    more = more + #ARGV[i + 1] - (#node - stop - 1)
    node = string.sub(node, 1, stop) .. ARGV[i + 1] .. string.sub(node, -1)
    redis.call('HSET', nodes, ARGV[i], node)
    changed = true
  end
end
if changed then
  redis.call('HSET', meta, 'token', ARGV[1])
  count(meta, more)
end
return 1
""",
)
