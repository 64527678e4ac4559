// safetensors files: 8 bytes with the length of a JSON header (little-endian), the header, and the data of the tensors.

const PREFIX = 8;
const MAX_HEADER = 100_000_000; // what the reference implementation accepts
const METADATA = "__metadata__";

// What JavaScript has no type for is left as bytes.
const ARRAYS = {
  F64: Float64Array,
  F32: Float32Array,
  I64: BigInt64Array,
  I32: Int32Array,
  I16: Int16Array,
  I8: Int8Array,
  U64: BigUint64Array,
  U32: Uint32Array,
  U16: Uint16Array,
  U8: Uint8Array,
};
const SIZES = { BOOL: 1, F8_E5M2: 1, F8_E4M3: 1, F16: 2, BF16: 2, C64: 8 };

/**
 * Reads a file.
 *
 * @param {Buffer} file
 * @returns {Map<string, {dtype: string, shape: number[], data: ArrayBufferView}>} The tensors by name, as copies.
 */
export function parse(file) {
  const length = file.length < PREFIX ? 0n : file.readBigUInt64LE();
  const start = PREFIX + Number(length);
  if (length > MAX_HEADER || start > file.length) throw new Error("this is no safetensors file");
  const header = Object.entries(JSON.parse(file.toString("utf8", PREFIX, start)));
  const entries = header.filter(([name]) => name !== METADATA);
  entries.sort(([, one], [, other]) => one.data_offsets[0] - other.data_offsets[0]);
  const tensors = new Map();
  let position = 0;
  for (const [name, { dtype, shape, data_offsets }] of entries) {
    const [begin, end] = data_offsets;
    const Type = ARRAYS[dtype] ?? Uint8Array;
    const itemSize = ARRAYS[dtype]?.BYTES_PER_ELEMENT ?? SIZES[dtype];
    const numBytes = shape.reduce((product, size) => product * size, 1) * itemSize;
    if (begin !== position || end - begin !== numBytes || start + end > file.length) {
      throw new Error(`the header does not fit the data of tensor ${JSON.stringify(name)}`);
    }
    // A copy, since the data of a file need not begin where an array may.
    const bytes = new Uint8Array(file.subarray(start + begin, start + end));
    tensors.set(name, { dtype, shape, data: new Type(bytes.buffer) });
    position = end;
  }
  if (start + position !== file.length) throw new Error("there are bytes behind the last tensor");
  return tensors;
}

/** Writes a file of tensors as `parse` returns them, in the same order. */
export function serialize(tensors) {
  const header = {};
  const parts = [];
  let position = 0;
  for (const [name, { dtype, shape, data }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [position, position + data.byteLength] };
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    position += data.byteLength;
  }
  const text = Buffer.from(JSON.stringify(header));
  const padding = Buffer.alloc(-text.length & (PREFIX - 1), " "); // the data begins at a multiple of eight
  const prefix = Buffer.alloc(PREFIX);
  prefix.writeBigUInt64LE(BigInt(text.length + padding.length));
  return Buffer.concat([prefix, text, padding, ...parts]);
}
