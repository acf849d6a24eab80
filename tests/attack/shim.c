/* Loaded before libc: numbers every system call that changes a file below ATTACK_ROOT, and ends the process at one of them.

   arm(n) starts counting from 1 and lets the process die just before its n-th call; 0 = never. A write that it dies at is done by
   half. Of every file it is known whether it was written since it was last flushed: unflushed(buffer, size) lists their inodes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536
struct state { long count, fatal, killed; ino_t inode[FILES]; char dirty[FILES]; };
static struct state *shared;
static char root[4096];


__attribute__((constructor)) static void begin(void) {
  const char *given = getenv("ATTACK_ROOT");
  snprintf(root, sizeof root, "%s/", given ? given : "/nowhere");
  shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* survives a death in a fork */
}

void arm(long fatal) { memset(shared, 0, sizeof *shared); shared->fatal = fatal; }
long counted(void) { return shared->count; }
long died(void) { return shared->killed; }
long unflushed(uint64_t *buffer, long size) {
  long found = 0;
  for (long i = 0; i < FILES && found < size; i++) if (shared->dirty[i]) buffer[found++] = shared->inode[i];
  return found;
}

static int inside(const char *path) { return path && !strncmp(path, root, strlen(root)); }
static int open_inside(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long size = syscall(SYS_readlink, link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return inside(path);
}
static void mark(int fd, char dirty) {
  struct stat s;
  if (fstat(fd, &s) || !S_ISREG(s.st_mode)) return;
  for (long i = s.st_ino % FILES, n = 0; n < FILES; i = (i + 1) % FILES, n++)
    if (shared->inode[i] == s.st_ino || !shared->inode[i]) { shared->inode[i] = s.st_ino; shared->dirty[i] = dirty; return; }
}
static int fatal(void) { return ++shared->count == shared->fatal; }
static void die(void) { shared->killed = 1; syscall(SYS_exit_group, 137); }
static void step(void) { if (fatal()) die(); }

ssize_t write(int fd, const void *data, size_t size) {
  if (!open_inside(fd)) return syscall(SYS_write, fd, data, size);
  mark(fd, 1);
  if (fatal()) { syscall(SYS_write, fd, data, size / 2); die(); }
  return syscall(SYS_write, fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (open_inside(fd)) { mark(fd, 1); step(); }
  return syscall(SYS_writev, fd, parts, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
  if (open_inside(fd)) { mark(fd, 1); step(); }
  return syscall(SYS_pwrite64, fd, data, size, place);
}
int ftruncate64(int fd, off64_t size) {
  if (open_inside(fd)) { mark(fd, 1); step(); }
  return syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) {
  if (!open_inside(fd)) return syscall(SYS_fsync, fd);
  step();
  mark(fd, 0);
  return 0; /* told, not done: the disk is simulated */
}
int fdatasync(int fd) { return fsync(fd); }

static int opened(int folder, const char *path, int flags, mode_t mode) {
  if (inside(path) && (flags & (O_CREAT | O_TRUNC))) step();
  return syscall(SYS_openat, folder, path, flags, mode);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
  va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); return opened(AT_FDCWD, path, flags, mode); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
  va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); return opened(folder, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

int rename(const char *from, const char *to) {
  if (inside(to)) step();
  return syscall(SYS_rename, from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  if (inside(to)) step();
  return syscall(SYS_renameat, a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  if (inside(to)) step();
  return syscall(SYS_renameat2, a, from, b, to, flags);
}
int unlink(const char *path) {
  if (inside(path)) step();
  return syscall(SYS_unlink, path);
}
int unlinkat(int folder, const char *path, int flags) {
  if (inside(path) || (folder != AT_FDCWD && open_inside(folder))) step();
  return syscall(SYS_unlinkat, folder, path, flags);
}
int mkdir(const char *path, mode_t mode) {
  if (inside(path)) step();
  return syscall(SYS_mkdir, path, mode);
}
int rmdir(const char *path) {
  if (inside(path)) step();
  return syscall(SYS_rmdir, path);
}
