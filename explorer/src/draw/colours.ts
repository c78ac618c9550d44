// Colours of heads and of weights, for light and dark paper.

const HEADS = ["#3b6fd4", "#d9642c", "#2f9e68", "#c2388f", "#8a63d2", "#b58900", "#1899ad", "#d33f49",
  "#6b8e23", "#a0522d", "#5f7fae", "#e07ba8"];

/** The same head has the same colour everywhere. */
export const headColour = (head: number): string => HEADS[head % HEADS.length];

export const isDark = (): boolean => document.documentElement.dataset.theme === "dark";

const RAMPS = {
  light: [[255, 255, 255], [208, 217, 245], [122, 146, 222], [56, 66, 170], [24, 16, 78]],
  dark: [[20, 22, 33], [48, 44, 110], [126, 66, 160], [226, 122, 92], [255, 232, 160]],
};
const made: Record<string, Uint32Array> = {};

/** 256 colours (RGBA as one number) for bytes round(255 sqrt(w)): paper at 0, strongest at 1. */
export function ramp(dark = isDark()): Uint32Array {
  const name = dark ? "dark" : "light";
  return made[name] ??= Uint32Array.from({ length: 256 }, (_, v) => {
    const at = (v / 255) * 4, a = Math.min(3, Math.floor(at)), t = at - a;
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(RAMPS[name][a][c] * (1 - t) + RAMPS[name][a + 1][c] * t));
    return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  });
}

/** A colour for a signed number of size -1 to 1: blue below, red above. */
export function signed(x: number): string {
  const size = Math.min(1, Math.sqrt(Math.abs(x)));
  return `rgb(${x < 0 ? "70 120 220" : "216 84 60"} / ${(size * 0.9).toFixed(3)})`;
}

export const ink = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
