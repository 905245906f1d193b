// Messages from Python: a header, and layers of slices as exact values. What came is kept, up to a limit.

const KEPT_BYTES = 320 * 1024 * 1024;
const ARRAYS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };

function readMessage(bytes) {
  if (new TextDecoder().decode(bytes.subarray(0, 4)) !== "DPL1") throw new Error("not a message for planes");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  return { header, blobs: header.slabs.map((s) => bytes.subarray(8 + length + s.at, 8 + length + s.at + s.bytes)) };
}

async function unpackSlab(place, blob) {
  if (!place.packed) return slabOf(place, blob.slice().buffer); // a copy: the message is let go
  const stream = new Blob([blob]).stream().pipeThrough(new DecompressionStream("deflate"));
  return slabOf(place, await new Response(stream).arrayBuffer());
}

function slabOf(place, raw) {
  const [count, rows, columns] = place.shape;
  return { values: new ARRAYS[place.dtype](raw), count, rows, columns, step: place.step, bytes: raw.byteLength };
}

// Least recently used goes first.
class Kept {
  constructor() {
    this.slabs = new Map();
    this.bytes = 0;
  }

  has(key) {
    return this.slabs.has(key);
  }

  get(key) {
    const slab = this.slabs.get(key);
    if (slab) {
      this.slabs.delete(key);
      this.slabs.set(key, slab);
    }
    return slab;
  }

  put(key, slab) {
    if (this.slabs.has(key)) return;
    this.slabs.set(key, slab);
    this.bytes += slab.bytes;
    for (const [old, one] of this.slabs) {
      if (this.bytes <= KEPT_BYTES || this.slabs.size <= 12) break;
      this.slabs.delete(old);
      this.bytes -= one.bytes;
    }
  }
}
