"""The limits of sockets that are no settings, each with its reason. Sizes in bytes, times in seconds."""

# --- reading

# Bad frames in a row that close a socket (protocol section 2, Bad input).
MAX_BAD_FRAMES = 100
# A message counts as one frame of the user's rate, and as one more for each 16 KiB on the wire: it may come in many
# fragments (protocol section 2, Bad input).
BYTES_PER_FRAME = 16384
# Between two messages a socket may send this many bytes and twice MaxFrameBytes, headers included; more can only be
# fragments without end. aiohttp reads ahead by up to half of it.
MAX_FRAGMENTED = 1048576
# After our close frame this many bytes of the peer are dropped; then the connection is cut.
MAX_IGNORED = 8388608
# With this many requests or bytes the inbox is full, and the socket is not read. 128 requests are four batches, so the
# next batch is there when the store finishes one.
INBOX_FRAMES = 128
INBOX_BYTES = 262144
# Sends of one socket that are worked on together: at most this many, and no more once they have this many bytes.
# Other sockets wait while a batch is stored, and larger batches cost hardly less per message.
BATCH_REQUESTS = 32
BATCH_BYTES = 16384

# --- working

# Batches with more bytes of frames than this are large. Only a few are with the store at a time, so a short message
# that comes when many are large waits until a few are written, not all. They wait this many seconds at most.
LARGE_BYTES, LARGE_AT_ONCE, LARGE_TIMEOUT = 8192, 4, 10.0
# Batches of this many sockets share one call to the store.
SHARED_BATCHES = 64
# Stored batches are answered until they have this many requests and outboxes for their messages together; the others
# wait for the next loop iteration. A request takes about 20 us, an outbox 1 us: 10 ms.
ANSWERS_AT_ONCE = 512

# --- writing

# A page goes on while less than this many bytes wait for the reader.
DRAINED_BYTES = 32768
# Deliveries of a socket that no pong confirmed yet, at most; further messages stay unread, and op 3 returns them.
# About 200 bytes each: 3 MiB for a socket that answers no ping.
MAX_UNCONFIRMED = 16384

# --- liveness and the end

# A peer without any progress for this many checks in a row is dead.
MAX_MISSED = 2
# The heartbeats of all sockets are spread over this many moments of HeartbeatSeconds.
SLOTS = 32
# Heartbeats per loop iteration: each takes two system calls.
BEATS = 50
# When three quarters of at least this many sockets have closed, the memory that Python keeps of them is freed.
MANY = 1000
# Seconds for the peer to answer our close frame. aiohttp's own close() gives up too early for a peer that has much to
# read before it.
CLOSE_TIMEOUT = 2.0
# Seconds for the requests in work when the server ends. A page whose reader is slower stays unfinished.
FINISH_TIMEOUT = 2.0
