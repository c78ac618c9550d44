// Reads safetensors bytes: a header of JSON behind 8 bytes of its length, then the numbers.

export type Numbers = Uint8Array | Uint16Array | Uint32Array | Float32Array;
export interface Tensor { shape: number[]; data: Numbers }
export interface Tensors { meta: Record<string, string>; get(name: string): Tensor; has(name: string): boolean; bytes: number }

export function parse(buffer: ArrayBuffer): Tensors {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const start = 8 + length;
  const found = new Map<string, Tensor>();
  const get = (name: string): Tensor => {
    let tensor = found.get(name);
    if (!tensor) {
      const { dtype, shape, data_offsets: [a, b] } = header[name];
      tensor = { shape, data: numbers(dtype, buffer.slice(start + a, start + b)) };
      found.set(name, tensor);
    }
    return tensor;
  };
  return { meta: header.__metadata__ ?? {}, get, has: (name) => name in header, bytes: buffer.byteLength };
}

function numbers(dtype: string, bytes: ArrayBuffer): Numbers {
  switch (dtype) {
    case "U8": return new Uint8Array(bytes);
    case "U16": return new Uint16Array(bytes);
    case "U32": return new Uint32Array(bytes);
    case "F32": return new Float32Array(bytes);
    case "F16": return Float32Array.from(new Uint16Array(bytes), half);
    default: throw new Error(`numbers of type ${dtype} are not read here`);
  }
}

/** The number that 16 bits mean (IEEE 754 binary16). */
export function half(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const exponent = (h >> 10) & 31;
  const fraction = h & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A weight of each byte: (v / 255)^2. */
export const ROOT = Float32Array.from({ length: 256 }, (_, v) => (v / 255) ** 2);
