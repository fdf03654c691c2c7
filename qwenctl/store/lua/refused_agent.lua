-- Note that a message of this GPU's agent was refused; its next hello that counts removes the note.
-- ARGV: 3 code, 4 the address it came from, 5 why.
redis.call('HSET', STATE, 'refused_code', ARGV[3], 'refused_peer', ARGV[4], 'refused_why', ARGV[5],
  'refused_at', num(NOW))
changed('refused')
return 0
