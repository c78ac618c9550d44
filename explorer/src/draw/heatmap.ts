// Paints matrices of bytes, one pixel a cell; the canvas scales it up without blur.
import { ramp } from "./colours";

/** An image of rows x cols bytes. */
export function image(bytes: ArrayLike<number>, rows: number, cols: number, from = 0): ImageData {
  const colours = ramp();
  const pixels = new ImageData(Math.max(1, cols), Math.max(1, rows));
  const out = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < rows * cols; i++) out[i] = colours[bytes[from + i]];
  return pixels;
}

const scratch = document.createElement("canvas");

/** Draws an image into a rectangle, cells sharp. */
export function place(ctx: CanvasRenderingContext2D, pixels: ImageData, x: number, y: number, w: number, h: number): void {
  scratch.width = pixels.width;
  scratch.height = pixels.height;
  scratch.getContext("2d")!.putImageData(pixels, 0, 0);
  ctx.imageSmoothingEnabled = pixels.width > w * 2;
  ctx.drawImage(scratch, x, y, w, h);
}
