"""Random changes of bytes for the fuzz; each returns what it did.

`end` bounds where nine in ten changes start: it is the end of a file's header,
where each byte matters.
"""


def place(rng, data, end):
  end = len(data) if rng.random() < 0.1 else min(end, len(data))
  return rng.randrange(end) if end else 0


def flip(rng, data, end):
  at, bit = place(rng, data, end), rng.randrange(8)
  data[at:at + 1] = bytes(x ^ 1 << bit for x in data[at:at + 1])
  return f'bit {bit} of byte {at} flipped'


def set_byte(rng, data, end):
  at, new = place(rng, data, end), rng.choice(b'\0\1\n 0a.\x7f\x80\xff')
  data[at:at + 1] = bytes([new])
  return f'byte {at} = {new}'


def truncate(rng, data, end):
  at = place(rng, data, end)
  del data[at:]
  return f'cut at {at}'


def insert(rng, data, end):
  at, size = place(rng, data, end), rng.choice((1, 4, 8, 12, 32, 100))
  data[at:at] = rng.randbytes(size)
  return f'{size} random bytes before {at}'


def delete(rng, data, end):
  at, size = place(rng, data, end), rng.choice((1, 4, 8, 12, 32, 100))
  del data[at:at + size]
  return f'{size} bytes at {at} deleted'


def splice(rng, data, end, spare, spare_end):
  """Bytes of another file over this one's, or between them."""
  start, at = place(rng, spare, spare_end), place(rng, data, end)
  size, over = rng.randrange(1, 200), rng.random() < 0.5
  part = spare[start:start + size]
  data[at:at + (len(part) if over else 0)] = part
  return f'{len(part)} bytes from {start} {"over" if over else "before"} {at}'
