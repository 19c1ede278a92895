// The only program of the image localhost/hiernas-pause: holds a pod's namespaces, and plays a container's ends for tests that need no Python.
//   pause            wait until SIGTERM or SIGINT      pause sleep SECONDS   end with 0 after that time
//   pause exit CODE  end at once                       pause eat MIB         fill that much memory, then wait
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal) { (void)signal; _exit(0); }
// As process 1 of a pod with a shared process namespace it inherits orphans.
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) continue; }

int main(int count, char **words) {
  const char *verb = count > 1 ? words[1] : "";
  long number = count > 2 ? atol(words[2]) : 0;
  signal(SIGTERM, stop);
  signal(SIGINT, stop);
  signal(SIGCHLD, reap);
  printf("pause %s %ld\n", verb, number);
  fflush(stdout);
  if (!strcmp(verb, "exit")) return (int)number;
  if (!strcmp(verb, "sleep")) return (int)sleep((unsigned)number);
  if (!strcmp(verb, "eat"))
    for (long i = 0; i < number; i++) {
      char *block = malloc(1 << 20);
      if (!block) return 1;
      memset(block, 1, 1 << 20);  // memory counts only once it is written
    }
  for (;;) pause();
}
