// Milliseconds per token of llama.cpp with a full cache: llama_decode FOLDER MODEL CONTEXT TOKENS LAYERS BACKEND...
//
// FOLDER holds the libraries, of which the BACKENDs are loaded; LAYERS of the model run on the GPU. Each step puts a token in, waits for
// its logits on the host and takes the largest, as an engine does. Prints one line of JSON.
#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static int fail(const char * what) {
    fprintf(stderr, "error: %s\n", what);
    return 1;
}

int main(int argc, char ** argv) {
    if (argc < 7) {
        return fail("expected FOLDER MODEL CONTEXT TOKENS LAYERS BACKEND...");
    }
    const std::string folder = argv[1];
    const int context = atoi(argv[3]), tokens = atoi(argv[4]);
    if (context < 1 || tokens < 1) {
        return fail("CONTEXT and TOKENS must be at least 1");
    }
    for (int i = 6; i < argc; ++i) {
        if (!ggml_backend_load((folder + "/" + argv[i]).c_str())) {
            return fail(("cannot load " + folder + "/" + argv[i]).c_str());
        }
    }
    llama_backend_init();
    llama_model_params of_model = llama_model_default_params();
    of_model.n_gpu_layers = atoi(argv[5]);
    llama_model * model = llama_model_load_from_file(argv[2], of_model);
    if (!model) {
        return fail("the model cannot be loaded");
    }
    llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = context + tokens + 64;
    of_context.n_batch = 2048;
    of_context.no_perf = true;
    llama_context * stream = llama_init_from_model(model, of_context);
    if (!stream) {
        return fail("no room for the cache");
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> prompt(context);
    for (int i = 0; i < context; ++i) {
        prompt[i] = i * 7919 % vocabulary;
    }
    for (int at = 0; at < context; at += 2048) {
        const int count = std::min(2048, context - at);
        if (llama_decode(stream, llama_batch_get_one(prompt.data() + at, count))) {
            return fail("the prompt cannot be decoded");
        }
    }
    llama_synchronize(stream);
    std::vector<double> ms;
    llama_token next = prompt.back();
    const int warmup = std::min(16, tokens / 2);
    for (int i = 0; i < tokens; ++i) {
        const auto started = std::chrono::steady_clock::now();
        if (llama_decode(stream, llama_batch_get_one(&next, 1))) {
            return fail("a token cannot be decoded");
        }
        const float * logits = llama_get_logits_ith(stream, -1);
        next = std::max_element(logits, logits + vocabulary) - logits;
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
        if (i >= warmup) {
            ms.push_back(took.count());
        }
    }
    std::sort(ms.begin(), ms.end());
    printf("{\"peer\": \"llama.cpp\", \"context\": %d, \"tokens\": %zu, \"ms\": {\"median\": %.4f, \"min\": %.4f, \"max\": %.4f}}\n",
           context, ms.size(), ms[ms.size() / 2], ms.front(), ms.back());
    llama_free(stream);
    llama_model_free(model);
    return 0;
}
