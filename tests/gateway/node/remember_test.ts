import { assertEquals } from "@std/assert";
import { isNeverRemembered } from "../../../gateway/node/remember.ts";

Deno.test("always is never remembered for what runs whatever it is given", () => {
  const forgotten = [
    ...["sh", "bash", "dash", "rbash", "mksh", "pwsh", "busybox", "/opt/x/zsh", "ksh93", "Bash"],
    ...["env", "sudo", "xargs", "nohup", "timeout", "find", "ssh", "strace", "parallel", "npx"],
    ...[
      "python3",
      "python3.12",
      "perl",
      "perl5.36",
      "node",
      "deno",
      "gawk",
      "mawk",
      "lua5.4",
      "php8.2",
    ],
  ];

  for (const program of forgotten) assertEquals(isNeverRemembered([program, "x"]), true, program);
  for (const program of ["uname", "git", "trash", "publish", "nodemon", "/usr/bin/ls", "awkward"]) {
    assertEquals(isNeverRemembered([program, "x"]), false, program);
  }
});

Deno.test("of a line for a shell the programs in it count, as far as it can be read", () => {
  const isForgotten = (line: string) => isNeverRemembered(["/bin/sh", "-lc", line]);

  assertEquals(isForgotten("uname && df -h | head -3"), false);
  assertEquals(isForgotten("uname | xargs echo"), true);
  assertEquals(isForgotten("uname > file"), true);
  assertEquals(isForgotten("echo $(id)"), true);
});
