// The secret a gateway makes for itself when nobody chose one (D6).

import { writePrivateFile } from "../config/private_file.ts";
import { encodeBase64Url } from "../rpc/identity.ts";

const TOKEN_BYTES = 32;

/** The token kept in a file of the state directory, made the first time. */
export async function ownToken(path: string): Promise<string> {
  const found = await readToken(path);
  if (found) return found;
  const token = encodeBase64Url(crypto.getRandomValues(new Uint8Array(TOKEN_BYTES)));
  await writePrivateFile(path, `${token}\n`);
  return token;
}

async function readToken(path: string): Promise<string | undefined> {
  try {
    return (await Deno.readTextFile(path)).trim() || undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
