#include "libibverbs.h"

#include <dlfcn.h>

static struct {
#define FIELD(result, name, parameters, arguments) result(*name) parameters;
    CKV_API(FIELD)
    int open;
} library;

const char *ckv_open(void) {
    if (library.open) return NULL;
    void *file = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!file) return dlerror();
    /* dlsym gives a symbol's default version, as the linker does. */
#define LOOK_UP(result, name, parameters, arguments)                      \
    *(void **)&library.name = dlsym(file, "ibv_" #name);                  \
    if (!library.name) {                                                  \
        dlclose(file);                                                    \
        return "libibverbs.so.1 has no function ibv_" #name;              \
    }
    CKV_API(LOOK_UP)
    library.open = 1;
    return NULL;
}

#define DEFINE(result, name, parameters, arguments) \
    result ckv_##name parameters { return library.name arguments; }
CKV_API(DEFINE)
