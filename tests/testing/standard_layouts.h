// The layouts that the suites run over: every layer kind, page sizes on both sides of a block, and
// the shapes that have broken such stores before. All are valid.
#pragma once

#include <string>
#include <vector>

#include "core/layout.h"

namespace turnkeep::testing {

struct LayoutCase {
  std::string name;  // letters and digits only, for test names
  KvLayout layout;
  bool hashed = false;
};

// Two layers of 512-byte pages, 16-token chunks: many small chunks.
KvLayout TinyLayout(const std::string& model = "tiny");
// Four layers of 16 KiB pages, 64-token chunks: layers are readable alone.
KvLayout BlockLayout(const std::string& model = "block");
// One layer of each kind, rotary table and per-tensor scales included.
KvLayout EveryKindLayout();

// All of them; the small ones first.
std::vector<LayoutCase> StandardLayouts();

// `base` changed in one field alone, for every field of KvLayout, RopeSpec and LayerSpec that
// can change alone in it. Each is valid and its name is the field's.
struct FieldChange {
  std::string field;
  KvLayout layout;
};
std::vector<FieldChange> OneFieldChanges(const KvLayout& base);

}  // namespace turnkeep::testing
