// A network of its own: a namespace with nothing but loopback, which takes root on Linux.

export interface Namespace extends AsyncDisposable {
  name: string;
  /** `ip` inside the namespace. */
  ip(...args: string[]): Promise<void>;
}

export async function makeNamespace(): Promise<Namespace> {
  const name = `zero-${crypto.randomUUID().slice(0, 8)}`;
  await ip("netns", "add", name);
  const namespace: Namespace = {
    name,
    ip: (...args) => ip("-n", name, ...args),
    [Symbol.asyncDispose]: () => ip("netns", "delete", name),
  };
  try {
    await namespace.ip("link", "set", "lo", "up");
    return namespace;
  } catch (error) {
    await namespace[Symbol.asyncDispose]();
    throw error;
  }
}

/** @returns why no namespace can be made here; undefined where one can */
export async function namespaceObstacle(): Promise<string | undefined> {
  if (Deno.build.os !== "linux") return "this is no Linux";
  if (Deno.uid() !== 0) return "this is not root";
  try {
    await using _namespace = await makeNamespace();
  } catch (error) {
    return (error as Error).message;
  }
}

async function ip(...args: string[]) {
  const { success, stderr } = await new Deno.Command("ip", { args }).output();
  if (!success) throw new Error(`ip ${args.join(" ")}: ${new TextDecoder().decode(stderr).trim()}`);
}
