// Generates text from one file of `qkvbench export --to edge`: no Python, no framework.
#include <time.h>

#include <algorithm>
#include <new>

#include "network.h"

namespace {

constexpr const char* USAGE =
    "Use: qkvbench-edge FILE (--prompt TEXT | --tokens 'N N ...') [--count N] [--temperature T] [--seed N]\n"
    "     [--threads N] [--ids] [--report]\n"
    "\n"
    "Writes --count new tokens (100) to the standard output: bytes, or numbers if the file or --ids says so.\n"
    "--temperature 0 (the default) takes the most likely token; --report writes times and sizes as JSON to the\n"
    "standard error.";

struct Request {
    const char *file = nullptr, *prompt = nullptr, *tokens = nullptr;
    int64_t count = 100, seed = 0, threads = 1;
    double temperature = 0;
    bool ids = false, report = false;
};

[[noreturn]] void refuse_word(const char* word) { refuse("'%.80s' is no number that fits its option.", word); }

int64_t whole_number(const char* word, int64_t least, int64_t most) {
    char* stop;
    errno = 0;
    const long long number = strtoll(word, &stop, 10);
    if (stop == word || *stop || errno || number < least || number > most) refuse_word(word);
    return number;
}

double temperature_of(const char* word) {
    char* stop;
    const double number = strtod(word, &stop);
    if (stop == word || *stop || !(number >= 0 && number <= 100)) refuse_word(word);
    return number;
}

Request read_request(int count, char** words) {
    Request request;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&] {
            if (++i == count) refuse("%s needs a value.", word.c_str());
            return (const char*)words[i];
        };
        if (word == "--prompt") request.prompt = value();
        else if (word == "--tokens") request.tokens = value();
        else if (word == "--count") request.count = whole_number(value(), 1, INT32_MAX);
        else if (word == "--seed") request.seed = whole_number(value(), 0, INT64_MAX);
        else if (word == "--threads") request.threads = whole_number(value(), 1, 1024);
        else if (word == "--temperature") request.temperature = temperature_of(value());
        else if (word == "--ids") request.ids = true;
        else if (word == "--report") request.report = true;
        else if (word == "--help" || word == "-h") { puts(USAGE); exit(0); }
        else if (word[0] == '-') refuse("There is no option '%.80s'; --help lists them.", word.c_str());
        else if (request.file) refuse("There is one FILE, and '%.80s' is another.", word.c_str());
        else request.file = words[i];
    }
    if (!request.file) refuse("Name the FILE of a model; --help says how.");
    if (!request.prompt == !request.tokens) refuse("Give either --prompt TEXT or --tokens 'N N ...'.");
    return request;
}

std::vector<int> prompt_of(const Request& request, const Network& network) {
    std::vector<int> tokens;
    if (request.prompt) {
        if (!network.reads_bytes) refuse("This file's tokens are no bytes: give --tokens 'N N ...'.");
        for (const char* at = request.prompt; *at; ++at) tokens.push_back((unsigned char)*at);
    } else {
        for (const char* at = request.tokens; *at;) {
            char* stop;
            errno = 0;
            const long long token = strtoll(at, &stop, 10);
            if (stop == at || errno || token < 0 || token >= network.vocabulary)
                refuse("--tokens are whole numbers from 0 to %d with spaces between.", network.vocabulary - 1);
            tokens.push_back(int(token));
            at = stop;
            while (*at == ' ' || *at == '\n') ++at;
        }
    }
    if (tokens.empty()) refuse("A prompt has at least one token.");
    if (int64_t(tokens.size()) + request.count > network.context)
        refuse("This file is for texts of %lld tokens; %zu of the prompt and %lld new ones are more.",
               (long long)network.context, tokens.size(), (long long)request.count);
    return tokens;
}

// Numbers in [0, 1) by SplitMix64.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    double next() {
        uint64_t x = state_ += 0x9e3779b97f4a7c15;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        return double((x ^ x >> 31) >> 11) * 0x1p-53;
    }

  private:
    uint64_t state_;
};

int chosen(const std::vector<float>& logits, double temperature, Random& random) {
    const auto largest = std::max_element(logits.begin(), logits.end());
    for (const float each : logits)
        if (!(each - each == 0)) refuse("The model's logits are no finite numbers.");
    if (temperature == 0) return int(largest - logits.begin());
    std::vector<double> until;
    double sum = 0;
    for (const float each : logits) until.push_back(sum += exp((each - *largest) / temperature));
    const auto found = std::upper_bound(until.begin(), until.end(), random.next() * sum);
    return int(std::min<size_t>(found - until.begin(), logits.size() - 1));
}

double seconds(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

void generate(const Request& request) {
    std::unique_ptr<ModelFile> file;
    std::unique_ptr<Network> network;
    std::vector<int> tokens;
    try {
        file = std::make_unique<ModelFile>(request.file);
        network = std::make_unique<Network>(*file, int(request.threads));
    } catch (const Refusal& why) {
        refuse("%.200s cannot be run: %s.", request.file, why.sentence.c_str());
    }
    tokens = prompt_of(request, *network);
    try {
        network->reserve(int64_t(tokens.size()) + request.count - 1);
    } catch (const Refusal& why) {
        refuse("%.200s cannot be run: %s.", request.file, why.sentence.c_str());
    }
    const double began = seconds(CLOCK_MONOTONIC);
    const std::vector<float>* logits = nullptr;
    for (size_t at = 0; at < tokens.size(); at += MAX_TOKENS)
        logits = &network->step(tokens.data() + at, int(std::min<size_t>(MAX_TOKENS, tokens.size() - at)));
    const double read = seconds(CLOCK_MONOTONIC), cpu_before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    Random random{uint64_t(request.seed)};
    const bool ids = request.ids || !network->reads_bytes;
    for (int64_t made = 0;;) {
        const int token = chosen(*logits, request.temperature, random);
        if (ids) printf(made ? " %d" : "%d", token);
        else putchar(token);
        fflush(stdout);
        if (++made == request.count) break;
        logits = &network->step(&token, 1);
    }
    if (ids) putchar('\n');
    const double ended = seconds(CLOCK_MONOTONIC), cpu_after = seconds(CLOCK_PROCESS_CPUTIME_ID);
    if (fflush(stdout) || ferror(stdout)) refuse("The text cannot be written to the standard output.");
    if (request.report)
        fprintf(stderr,
                "{\"isa\": \"%s\", \"file_bytes\": %llu, \"cache_bytes\": %llu, "
                "\"prompt_tokens\": %zu, \"prompt_s\": %.6f, \"steps\": %lld, \"decode_s\": %.6f, "
                "\"decode_cpu_s\": %.6f}\n",
                network->isa(), (unsigned long long)file->size(),
                (unsigned long long)network->cache_bytes(), tokens.size(), read - began,
                (long long)request.count - 1, ended - read, cpu_after - cpu_before);
}

}  // namespace

int main(int count, char** words) {
    try {
        generate(read_request(count, words));
        return 0;
    } catch (const Refusal& why) {
        fprintf(stderr, "%s\n", why.sentence.c_str());
    } catch (const std::bad_alloc&) {
        fprintf(stderr, "The model does not fit into memory.\n");
    }
    return 2;
}
