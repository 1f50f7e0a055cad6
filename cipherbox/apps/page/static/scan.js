/* Read a QR code in a picture: the one that another page shows, so that its number is compared.
 *
 * 1. Each pixel is black or white beside the mean of its surroundings: light is uneven.
 * 2. Finder patterns are runs of 1:1:3:1:1 in a row, checked in the column.
 * 3. Three of them, and the alignment pattern near the fourth corner, give the projection.
 * 4. The version is not measured: each is tried, and its timing pattern, format and Reed-Solomon
 *    code say whether it is the one.
 *
 * ISO/IEC 18004, versions 1 to 10: a number and a client id need 4, the longest client id 7.
 */
"use strict";

const TOTAL = [26, 44, 70, 100, 134, 172, 196, 242, 292, 346];  // codewords of each version
const LEVELS = {  // bits of the format: correction codewords of each block, and the blocks
  1: [[7, 10, 15, 20, 26, 18, 20, 24, 30, 18], [1, 1, 1, 1, 1, 2, 2, 2, 2, 4]],
  0: [[10, 16, 26, 18, 24, 16, 18, 22, 22, 26], [1, 1, 1, 2, 2, 4, 4, 4, 5, 5]],
  3: [[13, 22, 18, 26, 18, 24, 18, 22, 20, 24], [1, 1, 2, 2, 4, 4, 6, 6, 8, 8]],
  2: [[17, 28, 22, 16, 22, 28, 26, 26, 24, 28], [1, 1, 2, 4, 4, 4, 5, 6, 8, 8]],
};
const MASKS = [
  (x, y) => (x + y) % 2, (x, y) => y % 2, (x) => x % 3, (x, y) => (x + y) % 3,
  (x, y) => (Math.floor(y / 2) + Math.floor(x / 3)) % 2, (x, y) => x * y % 2 + x * y % 3,
  (x, y) => (x * y % 2 + x * y % 3) % 2, (x, y) => ((x + y) % 2 + x * y % 3) % 2,
];
const LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:";
const CANDIDATES = 12;  // finder patterns of which three are chosen

/* -- pixels -------------------------------------------------------------------------------------- */

/* Return whether each pixel is black: darker than the mean of a square of this size around it. */
function blackened(data, width, height, size) {
  const sums = new Float64Array((width + 1) * (height + 1));
  const grey = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    let row = 0;
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      grey[at] = (data[4 * at] * 3 + data[4 * at + 1] * 6 + data[4 * at + 2]) / 10;
      row += grey[at];
      sums[(y + 1) * (width + 1) + x + 1] = sums[y * (width + 1) + x + 1] + row;
    }
  }
  const black = new Uint8Array(width * height);
  const half = Math.max(2, size >> 1);
  for (let y = 0; y < height; y++) {
    const top = Math.max(0, y - half), end = Math.min(height, y + half);
    for (let x = 0; x < width; x++) {
      const left = Math.max(0, x - half), right = Math.min(width, x + half);
      const sum = sums[end * (width + 1) + right] - sums[top * (width + 1) + right]
        - sums[end * (width + 1) + left] + sums[top * (width + 1) + left];
      black[y * width + x] = grey[y * width + x] * (end - top) * (right - left) < 0.92 * sum ? 1 : 0;
    }
  }
  return black;
}

/* Return the length of a module if five runs are those of a finder pattern, or 0. */
function module(runs) {
  const one = (runs[0] + runs[1] + runs[2] + runs[3] + runs[4]) / 7;
  if (one < 1) return 0;
  const near = (run, many) => Math.abs(run - many * one) <= many * one * (many === 1 ? 0.7 : 0.4) + 0.5;
  return [1, 1, 3, 1, 1].every((many, at) => near(runs[at], many)) ? one : 0;
}

/* Return [centre, module] of a finder pattern along a line through a pixel, or null. */
function across(black, start, step, before, after) {
  const runs = [0, 0, 0, 0, 0];
  const walk = (direction, most, places) => {
    let at = direction > 0 ? 1 : 0;
    for (const place of places) {
      const dark = place % 2 === 0;
      while (at <= most && black[start + direction * at * step] === (dark ? 1 : 0)) { runs[place]++; at++; }
    }
    return at;
  };
  walk(-1, before, [2, 1, 0]);
  const first = runs[0] + runs[1] + runs[2];
  const up = runs[2];
  walk(1, after, [2, 3, 4]);
  const one = module(runs);
  return one && first ? [(runs[2] - 1) / 2 - (up - 1), one] : null;
}

/* Return finder patterns {x, y, one, count}, those seen in most rows first. */
function finders(black, width, height) {
  const found = [];
  for (let y = 0; y < height; y++) {
    let runs = [], dark = 0, length = 0;
    for (let x = 0; x <= width; x++) {
      const now = x < width ? black[y * width + x] : 2;
      if (now === dark) { length++; continue; }
      runs.push(length);
      if (dark === 1 && runs.length >= 5) {
        const last = runs.slice(-5);
        const one = module(last);
        if (one) note(found, black, width, height, Math.round(x - last[4] - last[3] - last[2] / 2), y);
      }
      dark = now;
      length = 1;
    }
  }
  return found.sort((a, b) => b.count - a.count).slice(0, CANDIDATES);
}

function note(found, black, width, height, x, y) {
  const down = across(black, y * width + x, width, y, height - 1 - y);
  if (!down) return;
  const middle = Math.round(y + down[0]);
  const along = across(black, middle * width + x, 1, x, width - 1 - x);
  if (!along) return;
  const here = { x: x + along[0] + 0.5, y: y + down[0] + 0.5, one: (down[1] + along[1]) / 2, count: 1 };
  const known = found.find((it) => Math.hypot(it.x - here.x, it.y - here.y) < 2 * it.one);
  if (!known) { found.push(here); return; }
  for (const name of ["x", "y", "one"]) {
    known[name] = (known[name] * known.count + here[name]) / (known.count + 1);
  }
  known.count++;
}

/* Return [top left, top right, bottom left] for each three that may be a code's, the best first. */
function corners(found) {
  const threes = [];
  for (let a = 0; a < found.length; a++) {
    for (let b = a + 1; b < found.length; b++) {
      for (let c = b + 1; c < found.length; c++) {
        const three = [found[a], found[b], found[c]];
        const sizes = three.map((it) => it.one);
        if (Math.max(...sizes) > 1.7 * Math.min(...sizes)) continue;
        for (const at of [0, 1, 2]) {
          const p = three[at], q = three[(at + 1) % 3], r = three[(at + 2) % 3];
          const long = Math.hypot(q.x - p.x, q.y - p.y), wide = Math.hypot(r.x - p.x, r.y - p.y);
          const far = Math.hypot(q.x - r.x, q.y - r.y);
          const error = Math.abs(Math.log(long / wide)) + Math.abs(far * far / (long * long + wide * wide) - 1);
          if (error > 0.7 || Math.min(long, wide) < 7 * p.one) continue;
          const turned = (q.x - p.x) * (r.y - p.y) - (q.y - p.y) * (r.x - p.x) > 0;
          threes.push([error, turned ? [p, q, r] : [p, r, q]]);
        }
      }
    }
  }
  return threes.sort((a, b) => a[0] - b[0]).slice(0, 6).map(([, three]) => three);
}

/* -- modules ------------------------------------------------------------------------------------- */

/* Return the projection of a plane that leads four points to four others. */
function projection(from, to) {
  const rows = [];
  from.forEach(([x, y], at) => {
    const [u, v] = to[at];
    rows.push([x, y, 1, 0, 0, 0, -u * x, -u * y, u], [0, 0, 0, x, y, 1, -v * x, -v * y, v]);
  });
  for (let at = 0; at < 8; at++) {  // Gauss and Jordan
    let most = at;
    for (let row = at; row < 8; row++) if (Math.abs(rows[row][at]) > Math.abs(rows[most][at])) most = row;
    [rows[at], rows[most]] = [rows[most], rows[at]];
    for (let row = 0; row < 8; row++) {
      const part = row === at ? 0 : rows[row][at] / rows[at][at];
      if (part) for (let column = at; column < 9; column++) rows[row][column] -= part * rows[at][column];
    }
  }
  const [a, b, c, d, e, f, g, h] = rows.map((row, at) => row[8] / row[at]);
  return (x, y) => [(a * x + b * y + c) / (g * x + h * y + 1), (d * x + e * y + f) / (g * x + h * y + 1)];
}

/* Return projections from modules to pixels.  The fourth corner is where the sizes of the three
 * finder patterns lead, or where their plane would without perspective; the alignment pattern near
 * it, if there is one, is exact.
 */
function projections(picture, three, size) {
  const end = size - 3.5, from = [[3.5, 3.5], [end, 3.5], [3.5, end]], to = three.map((it) => [it.x, it.y]);
  const found = [];
  for (const depths of [three.map((it) => 1 / it.one), [1, 1, 1]]) {
    const fourth = ["x", "y"].map((name) => {
      const [p, q, r] = three.map((it, at) => it[name] * depths[at]);
      return (q + r - p) / (depths[1] + depths[2] - depths[0]);
    });
    const plain = projection([...from, [end, end]], [...to, fourth]);
    const place = size > 21 && alignment(picture, plain, size - 6.5);
    if (place) found.push(projection([...from, [size - 6.5, size - 6.5]], [...to, place]));
    found.push(plain);
  }
  return found;
}

/* Return the centre of the alignment pattern near a module, or null. */
function alignment(picture, place, middle) {
  let most = 22, x = 0, y = 0, count = 0;
  for (let a = -4; a <= 4; a += 0.5) {
    for (let b = -4; b <= 4; b += 0.5) {
      let score = 0;
      for (let i = -2; i <= 2; i++) {
        for (let j = -2; j <= 2; j++) {
          const dark = Math.max(Math.abs(i), Math.abs(j)) !== 1;
          if (picture.dark(...place(middle + a + i, middle + b + j)) === dark) score++;
        }
      }
      if (score > most) { most = score; x = y = count = 0; }
      if (score === most) { x += a; y += b; count++; }
    }
  }
  return count ? place(middle + x / count, middle + y / count) : null;
}

/* Return whether a module belongs to a pattern and not to the data. */
function patterned(size) {
  const version = (size - 17) / 4;
  const places = version === 1 ? [] : version < 7 ? [6, size - 7] : [6, (size - 1) / 2, size - 7];
  return (x, y) => {
    if ((x < 9 && y < 9) || (x >= size - 8 && y < 9) || (x < 9 && y >= size - 8)) return true;
    if (x === 6 || y === 6) return true;
    if (version >= 7 && ((x >= size - 11 && y < 6) || (y >= size - 11 && x < 6))) return true;
    return places.some((u) => places.some((v) => Math.abs(x - u) <= 2 && Math.abs(y - v) <= 2
      && !(u === 6 && v !== (size - 1) / 2 || v === 6 && u !== (size - 1) / 2)));
  };
}

/* Return [level, mask] as the code states them, or null. */
function format(get, size) {
  const one = [], other = [];
  for (let at = 0; at < 6; at++) one.push(get(at, 8));
  one.push(get(7, 8), get(8, 8), get(8, 7));
  for (let at = 5; at >= 0; at--) one.push(get(8, at));
  for (let at = 1; at <= 7; at++) other.push(get(8, size - at));
  for (let at = 8; at >= 1; at--) other.push(get(size - at, 8));
  let best = 4, found = null;
  for (let value = 0; value < 32; value++) {
    let rest = value << 10;
    for (let bit = 14; bit >= 10; bit--) if (rest >> bit & 1) rest ^= 0x537 << (bit - 10);
    const wanted = (value << 10 | rest) ^ 0x5412;
    for (const bits of [one, other]) {
      const wrong = bits.filter((bit, at) => bit !== (wanted >> (14 - at) & 1)).length;
      if (wrong < best) { best = wrong; found = [value >> 3, value & 7]; }
    }
  }
  return found;
}

/* Return the text of a code whose modules `get` tells, or null. */
function decoded(get, size) {
  let wrong = 0;
  for (let at = 8; at < size - 8; at++) wrong += (get(at, 6) === at % 2) + (get(6, at) === at % 2);
  const stated = wrong > (size - 16) / 2 ? null : format(get, size);
  if (!stated) return null;
  const version = (size - 17) / 4, mask = MASKS[stated[1]], pattern = patterned(size);
  const words = [];
  let word = 0, bits = 0;
  for (let x = size - 1, up = true; x > 0; x -= 2, up = !up) {
    if (x === 6) x--;
    for (let at = 0; at < size; at++) {
      const y = up ? size - 1 - at : at;
      for (const column of [x, x - 1]) {
        if (pattern(column, y)) continue;
        word = word << 1 | get(column, y) ^ (mask(column, y) === 0 ? 1 : 0);
        if (++bits === 8) { words.push(word); word = bits = 0; }
      }
    }
  }
  const [corrections, counts] = LEVELS[stated[0]];
  const data = corrected(words, TOTAL[version - 1], corrections[version - 1], counts[version - 1]);
  return data && read(data, version);
}

/* -- codewords ----------------------------------------------------------------------------------- */

const EXP = new Uint8Array(510), LOG = new Uint8Array(256);
for (let at = 0, value = 1; at < 255; at++) {
  EXP[at] = EXP[at + 255] = value;
  LOG[value] = at;
  value = value << 1 ^ (value > 127 ? 0x11d : 0);
}
const times = (a, b) => a && b ? EXP[LOG[a] + LOG[b]] : 0;
const over = (a, b) => a ? EXP[LOG[a] + 255 - LOG[b]] : 0;
const valueOf = (terms, x) => terms.reduceRight((sum, term) => times(sum, x) ^ term, 0);

/* Return the data of all blocks, corrected, or null. */
function corrected(words, total, correction, count) {
  const data = total - correction * count, short = Math.floor(data / count), long = count - data % count;
  const blocks = Array.from({ length: count }, () => []);
  let at = 0;
  for (let index = 0; index <= short; index++) {
    for (let block = index < short ? 0 : long; block < count; block++) blocks[block].push(words[at++]);
  }
  for (let index = 0; index < correction; index++) for (const block of blocks) block.push(words[at++]);
  const found = [];
  for (const block of blocks) {
    if (!correct(block, correction)) return null;
    found.push(...block.slice(0, block.length - correction));
  }
  return found;
}

/* Correct a block in place; return whether it is right now.  Polynomials: lowest term first. */
function correct(block, correction) {
  const highest = block.length - 1;
  const syndromes = Array.from({ length: correction }, (_, at) =>
    block.reduce((sum, word) => times(sum, EXP[at]) ^ word, 0));
  if (!syndromes.some(Boolean)) return true;
  let locator = [1], before = [1], gap = 1, scale = 1, length = 0;  // Berlekamp and Massey
  for (let at = 0; at < correction; at++) {
    let difference = syndromes[at];
    for (let k = 1; k <= length; k++) difference ^= times(locator[k] || 0, syndromes[at - k]);
    if (!difference) { gap++; continue; }
    const next = locator.slice(), factor = over(difference, scale);
    before.forEach((term, k) => { next[k + gap] = (next[k + gap] || 0) ^ times(factor, term); });
    for (let k = 0; k < next.length; k++) next[k] = next[k] || 0;
    if (2 * length <= at) {
      [before, scale, length, gap] = [locator, difference, at + 1 - length, 1];
    } else {
      gap++;
    }
    locator = next;
  }
  if (2 * length > correction) return false;
  const evaluator = syndromes.map((_, at) =>
    locator.slice(0, at + 1).reduce((sum, term, k) => sum ^ times(term, syndromes[at - k]), 0));
  let mended = 0;
  for (let power = 0; power <= highest; power++) {
    const inverse = EXP[(255 - power) % 255];
    if (valueOf(locator, inverse)) continue;
    const slope = locator.map((term, k) => k % 2 ? term : 0).slice(1);  // the derivative
    const divisor = valueOf(slope, inverse);
    if (!divisor) return false;
    block[highest - power] ^= times(EXP[power], over(valueOf(evaluator, inverse), divisor));
    mended++;
  }
  return mended === length;
}

/* Return the text in these codewords, or null. */
function read(data, version) {
  let at = 0;
  const take = (bits) => {
    let value = 0;
    for (; bits > 0; bits--, at++) value = value << 1 | (data[at >> 3] >> (7 - at % 8) & 1);
    return value;
  };
  const bytes = [];
  const put = (text) => bytes.push(...new TextEncoder().encode(text));
  const large = version >= 10;
  while (at + 4 <= 8 * data.length) {
    const mode = take(4);
    if (mode === 0) break;
    if (mode === 7) { take(8); continue; }  // which character set: all of ours are UTF-8
    const long = { 1: large ? 12 : 10, 2: large ? 11 : 9, 4: large ? 16 : 8 }[mode];
    if (!long) return null;
    let count = take(long);
    if (count > 2000) return null;
    for (; mode === 4 && count > 0; count--) bytes.push(take(8));
    for (; mode === 2 && count > 1; count -= 2) {
      const pair = take(11);
      put((LETTERS[Math.floor(pair / 45)] || "") + LETTERS[pair % 45]);
    }
    if (mode === 2 && count) put(LETTERS[take(6)] || "");
    for (; mode === 1 && count > 2; count -= 3) put(String(take(10)).padStart(3, "0"));
    if (mode === 1 && count) put(String(take(count * 3 + 1)).padStart(count, "0"));
  }
  return new TextDecoder().decode(new Uint8Array(bytes));
}

/* -- a picture ----------------------------------------------------------------------------------- */

/* Return the text of the QR code in ImageData, or null. */
function readCode({ data, width, height }) {
  for (const part of [8, 3]) {
    const black = blackened(data, width, height, Math.max(width, height) / part);
    const picture = {
      dark: (x, y) => {
        const u = Math.floor(x), v = Math.floor(y);
        return u >= 0 && v >= 0 && u < width && v < height && black[v * width + u] === 1;
      },
    };
    for (const three of corners(finders(black, width, height))) {
      for (let version = 1; version <= TOTAL.length; version++) {
        const size = 17 + 4 * version;
        for (const place of projections(picture, three, size)) {
          const get = (x, y) => picture.dark(...place(x + 0.5, y + 0.5)) ? 1 : 0;
          const text = decoded(get, size);
          if (text) return text;
        }
      }
    }
  }
  return null;
}
